"""The agents' side: who may join, what each can do now, whom to trust; imports no other room."""
