"""What this host serves as the coordinator has said, and how it changes that while it runs; may import `jobs`."""
