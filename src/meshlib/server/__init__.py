"""The server side, one module for each framework. Importing the folder loads none of them."""
