"""The slow level: what a joule is worth, and which experts are awake; may import `choosing`, `fleet` and below."""
