"""The gate as it serves, in numpy only; imports nothing of the coordinator."""
