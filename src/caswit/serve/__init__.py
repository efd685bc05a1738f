"""The viewer: images, maps and attention in a browser."""
