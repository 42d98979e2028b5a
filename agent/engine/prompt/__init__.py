"""A conversation as tokens: chat templates, checks of requests, marks of reasoning; may import `calls`."""
