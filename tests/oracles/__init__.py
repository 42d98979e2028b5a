"""Reference solvers, values and losses that the product's own are compared with; nothing that serves imports them."""
