"""(docstring and map of the folder)"""
