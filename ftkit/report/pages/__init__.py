"""Pages in HTML that stand alone: what each holds, its template, and the styles and scripts inside it."""
