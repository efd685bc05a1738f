"""Images and maps in a browser: what is in a folder, tiles of it, live attention, the page."""
