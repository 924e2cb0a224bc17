"""Why a model forgets: one file an analysis. ``core/`` reads models and texts, runs the analyses and shows them."""
