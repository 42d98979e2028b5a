"""The routes, and how what they are asked is answered; may import `access`, `faces` and `body`."""
