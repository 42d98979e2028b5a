"""What a sysadmin looks at: health, host, metrics, the local socket; may import `energy`."""
