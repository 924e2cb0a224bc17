"""Pages as one HTML file that needs no network: their frame, and what is written on them in the same way everywhere.

A page is a template that extends ``base.html``: it fills ``links``, ``main``, and what it needs of ``after`` and
``script``. Text is escaped by Jinja2; styles, script, pictures and data stand in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lit_consistency.drawing.canvas import svg
from lit_consistency.drawing.figure import WIDTH, Figure
from lit_consistency.drawing.numbers import count, duration, probability
from lit_consistency.drawing.palette import css_variables
from lit_consistency.drawing.scales import short_number
from lit_consistency.records.atomic import write_text


def page_environment(package: str) -> Environment:
    """Templates of a package and of this one, with the words that they share.

    Args:
        package: whose folder ``templates`` holds them.
    """
    loader = ChoiceLoader([PackageLoader(package), PackageLoader("lit_consistency.drawing")])
    # an undefined name in the template is an error, not an empty place
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"short": short_number, "duration": duration, "probability": probability}
    environment.globals |= {
        "count": count,
        "source": lambda name: Markup(loader.get_source(environment, name)[0]),
        "light": Markup(css_variables()),
        "dark": Markup(css_variables(dark=True)),
    }
    return environment


def write_page_file(path: Path, environment: Environment, template: str, context: Mapping[str, Any]) -> Path:
    """Fill a template and write it whole.

    Args:
        path: of the file; its folder is made if need be.
        environment: of ``page_environment``.
        template: name of its file.
        context: ``title``, and what the template needs.
    """
    html = environment.get_template(template).render(**context)
    # a lone surrogate, as an undecodable byte of a log leaves it, cannot be written
    write_text(path, html.encode("utf-8", "replace").decode("utf-8"))
    return path


def figure_context(figure: Figure) -> dict[str, Any]:
    """What the macro ``figure`` shows of a picture."""
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "picture": Markup(svg(figure.canvas, figure.title, figure.caption)),
        "phone": Markup(svg(figure.phone, figure.title, figure.caption)) if figure.phone else "",
        "width": round(figure.canvas.width),
        # a picture wider than its neighbours keeps its size and is scrolled: scaled down it could not be read
        "wide": figure.canvas.width > 1.1 * WIDTH or figure.phone is not None,
        "columns": figure.columns,
        "rows": figure.rows,
    }
