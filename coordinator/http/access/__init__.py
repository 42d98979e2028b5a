"""Who may ask, from where and how often, and the reading of bodies within bounds; may import only loose files."""
