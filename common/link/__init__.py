"""What coordinator and agents say to each other: messages, their bytes, a session, and the pump that runs it."""
