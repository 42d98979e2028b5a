"""What requests cost on this host, learned from measurements; may import `energy` and `settings`."""
