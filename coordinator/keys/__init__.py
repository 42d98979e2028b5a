"""API keys and who asks with them; may import `choosing.request` for the budgets of a key."""
