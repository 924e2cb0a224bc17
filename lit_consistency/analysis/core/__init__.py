"""What every analysis needs: its contract, models and texts, the run that resumes, tables, figures, the page."""
