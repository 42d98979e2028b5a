"""How both command lines look: arguments, figures, parts of a screen, a screen that refreshes."""
