"""How experts answer together, one file a mode; may import `serving.life` and what that imports."""
