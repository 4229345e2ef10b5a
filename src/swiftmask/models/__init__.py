"""Base models: one folder each, found by folder name. A model imports the core and nothing else of the
package.
"""
