"""What the pages' plots share: SVG that follows a reader's light or dark page."""

_STYLE = """<style>
svg{background:#fff;font:12px system-ui,"Segoe UI",Roboto,sans-serif}
text{fill:#667080}.title{fill:#1c1f24;font-size:15px;font-weight:600}.name{fill:#1c1f24}
.grid{stroke:#e6e7e3}.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.blue{stroke:#2f6fdb}.orange{stroke:#d9722b}.gray{stroke:#8b93a0}.dashed{stroke-dasharray:5 4}
.dot.blue{fill:#2f6fdb}.dot.gray{fill:#8b93a0}
@media (prefers-color-scheme:dark){svg{background:#161b22}text{fill:#8d97a5}
.title,.name{fill:#e8eaee}.grid{stroke:#262d37}
.blue{stroke:#6ea2ff}.orange{stroke:#f09a5a}.dot.blue{fill:#6ea2ff}}
</style>"""


def picture(width: int, height: int, body: str, style: str = "") -> str:
    """``style``: rules of its own."""
    own = f"<style>{style}</style>" if style else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"{_STYLE}{own}{body}</svg>\n"
    )
