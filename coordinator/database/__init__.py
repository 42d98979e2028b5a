"""What coordinators that serve one fleet share, on PostgreSQL; psycopg is behind its module `postgresql`."""
