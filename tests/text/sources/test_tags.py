from __future__ import annotations

from wrinklefree.text.sources.tags import strip_tags


def test_tags_go_entities_resolve_and_breaks_become_newlines() -> None:
    html = '<p>A&nbsp;&amp; <b class="x">B</b></p>\n<p>1 &lt; 2<br>3&eacute;<br/><br/><br/>4</p>'
    assert strip_tags(html) == "A & B\n\n1 < 2\n3é\n\n4"


def test_scripts_and_comments_are_not_text() -> None:
    assert strip_tags("a<script>var x = '<b>';</script><!-- c --><style>p{}</style>b") == "ab"


def test_plain_text_with_comparison_signs_survives() -> None:
    assert strip_tags("x < 3 and y > 4") == "x < 3 and y > 4"


def test_what_only_looks_like_a_section_of_sgml_is_a_comment() -> None:
    assert strip_tags("a <![foo[ b ]]> c <![if x]>d<![endif]>") == "a c d"
    assert strip_tags("a <![") == "a <!["
