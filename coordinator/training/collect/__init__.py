"""This room asks a fleet the questions of a question set and keeps its scored answers, to train the gate on them."""
