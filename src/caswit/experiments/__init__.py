"""The demonstration, the paper's tables and figures, and what they share."""
