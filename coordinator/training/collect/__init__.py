"""This room asks a fleet the questions of a set and keeps its scored answers; may import `answers`, `outcomes`."""
