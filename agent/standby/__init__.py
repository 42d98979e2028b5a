"""How this host waits: what its changes of state take, its sleep, and who can be woken; imports only what is common."""
