"""What requests have cost: the lasting record of each, and what keys may still use up today."""
