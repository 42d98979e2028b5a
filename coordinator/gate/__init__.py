"""This room holds the gate as it serves, with numpy alone. It imports nothing else of the coordinator."""
