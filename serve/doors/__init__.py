"""The protocols that robots may speak: one module a door, and the ASGI application that holds them."""
