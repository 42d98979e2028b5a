"""Certificates and TLS contexts of both sides."""
