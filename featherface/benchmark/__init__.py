"""Speed: what is compared alternates in one process, on the same input."""
