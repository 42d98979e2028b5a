"""Fine selection's knowledge: features of a prompt and the trained gate over experts."""
