"""Records in; tables, files and a page out.

collect.py     result folders -> named records
columns.py     what a row says: each column's key, heading, value and words
compare.py     the efficient front, the differences between runs, repeated runs taken together
text.py        terminal, Markdown, CSV, JSON
pages/         the pages in HTML, each with its template; page.css is in all of them
planned/       words for what was planned
"""
