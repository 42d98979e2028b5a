"""What coordinators of one fleet share on PostgreSQL, behind `postgresql`; may import what the ledger and keys may."""
