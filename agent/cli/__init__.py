"""The commands of `moe2-agent`, one file each; may import everything below the daemon."""
