"""Draw pictures with Pillow and fill HTML and Markdown templates."""
