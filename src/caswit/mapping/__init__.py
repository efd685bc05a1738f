"""Maps of images of any size: blocks, the journal of finished ones, the engine, and what is made of them."""
