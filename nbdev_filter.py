"Quarto `ipynb-filters` script: a notebook as the book shows it. Standard library only, because Quarto chooses the interpreter. Reads and writes JSON."
import json, re, sys

DIRECTIVE = re.compile(r'^\s*#\|\s*([\w-]+)(?=\s|$)(?!\s*:)')    # nbdev's directives have no colon, Quarto's have one
OPTION = re.compile(r'^#\|\s*[\w-]+\s*:')
HIDDEN = {'hide', 'default_exp', 'exporti'}

text = lambda s: ''.join(s or '')
lines = lambda c: text(c['source']).splitlines(keepends=True)


def one_row_head(m):
    "pandas sets the names of the index into a second row, under the names of the columns: one row holds both."
    top, below = (re.findall(r'<th[^>]*>(.*?)</th>', r, re.S) for r in m.groups())
    n = sum(map(bool, below))
    if len(top) != len(below) or not all(below[:n]) or any(top[:max(n-1, 0)]): return m[0]    # columns of several levels stay as they are
    return '<thead><tr>' + ''.join(f'<th>{o}</th>' for o in below[:n] + top[n:]) + '</tr></thead>'


def show_html(html):
    "HTML as Markdown: for any output of type text/html Quarto loads jQuery and RequireJS from the network, tables included. None if only a style sheet is left."
    html = re.sub(r'<style.*?</style>\s*| style="text-align: \w+;"|(?<=<table) [^>]*', '', html, flags=re.S).strip()
    html = re.sub(r'<thead>\s*<tr[^>]*>(.*?)</tr>\s*<tr[^>]*>(.*?)</tr>\s*</thead>', one_row_head, html, flags=re.S)
    return f'```{{=html}}\n{html}\n```\n' if html else None


def filter_output(o):
    "The output without what needs a network; None if nothing is left to see."
    html = text(o.get('data', {}).get('text/html'))
    if not html or '<script' in html: return o
    shown = show_html(html)
    return shown and {**o, 'data': {'text/markdown': shown, 'text/plain': o['data'].get('text/plain', '')}}


def filter_cell(cell):
    "The cell without nbdev's directives; None if nbdev hides it or nothing else was in it."
    if cell['cell_type'] != 'code': return cell
    kept = [l for l in lines(cell) if not DIRECTIVE.match(l)]
    if HIDDEN & {m[1] for l in lines(cell) if (m := DIRECTIVE.match(l))} or not text(kept).strip(): return None
    return {**cell, 'source': kept, 'outputs': [f for o in cell['outputs'] if (f := filter_output(o))]}


def join_cells(cells):
    "Neighbours as one, up to the first that prints, so that a chapter has one fold where it has many small cells."
    for a, b in zip(cells, [*cells[1:], None]):
        joinable = b and a['cell_type'] == b['cell_type'] == 'code' and not a['outputs'] and not any(map(OPTION.match, lines(a)))
        if not joinable: yield a
        else:
            options = [l for l in lines(b) if OPTION.match(l)]
            b['source'] = [*options, text(a['source']).strip('\n'), '\n\n', *lines(b)[len(options):]]


def filter_notebook(nb):
    "The notebook as the book shows it. A notebook with parameters is a chapter, whose code is folded; in the library the code is the text."
    cells = [f for c in nb['cells'] if (f := filter_cell(c))]
    chapter = any('parameters' in c.get('metadata', {}).get('tags', []) for c in cells)
    return {**nb, 'cells': list(join_cells(cells)) if chapter else cells}


if __name__ == '__main__': json.dump(filter_notebook(json.load(sys.stdin)), sys.stdout)
