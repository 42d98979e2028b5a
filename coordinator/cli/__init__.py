"""The commands of `moe2-coordinator`, one file each; may import everything below the daemon."""
