"""This room reads what answers say, and counts votes over them. PURE; it imports nothing else of the coordinator."""
