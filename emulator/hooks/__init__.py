"""How `emulate` gets between a framework and its matrix products: one module a framework, imported when it is used."""
