"""Which agents may connect: enrolment tokens, the credentials they are exchanged for, and their revocation."""
