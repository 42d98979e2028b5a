"""Models and the hosts that serve them: orders to agents, and files on their way; may import `fleet`."""
