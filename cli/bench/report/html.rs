//! The little HTML that a report needs. It is XML, too.

/// Of all pages.
const STYLE: &str = include_str!("style.css");
/// Longer tables are closed until somebody wants them.
const SHORT: usize = 12;

/// One part of a page.
pub struct Section {
    /// What the table of contents refers to.
    pub id: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// HTML.
    pub body: String,
}

/// Text without what no page can contain.
pub fn clean(text: &str) -> String {
    text.replace(|c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'), "\u{fffd}")
}

/// Text as it is written in HTML.
pub fn escape(text: &str) -> String {
    clean(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// All of it.
pub fn page(title: &str, head: &str, sections: &[Section]) -> String {
    let contents: String = sections
        .iter()
        .map(|section| format!("<li><a href=\"#{}\">{}</a></li>\n", section.id, section.title))
        .collect();
    let bodies: String = sections
        .iter()
        .map(|Section { id, title, body }| {
            format!("<section id=\"{id}\">\n<h2>{title}</h2>\n{body}</section>\n")
        })
        .collect();
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{head}\
         <nav><ul>\n{contents}</ul></nav>\n{bodies}</body>\n</html>\n"
    )
}

/// What a section says first; `text` is HTML.
pub fn paragraph(text: &str) -> String {
    format!("<p>{text}</p>\n")
}

/// In place of what there is no data for.
pub fn left_out(what: &str, why: &str) -> String {
    format!("<p class=\"missing\">{what}: left out, as {why}.</p>\n")
}

/// A plot under its title.
pub fn figure(title: &str, svg: &str) -> String {
    format!("<figure>\n<figcaption>{}</figcaption>\n{svg}</figure>\n", escape(title))
}

/// Rows of cells; columns that hold no words are flush right.
pub fn table(name: &str, heads: &[&str], rows: &[Vec<String>]) -> String {
    let is_number = |column: usize| {
        let mut cells = rows.iter().filter_map(|row| row.get(column));
        cells.all(|cell| !cell.contains(|character: char| character.is_alphabetic()))
    };
    let classes: Vec<&str> =
        (0..heads.len()).map(|column| if is_number(column) { " class=\"number\"" } else { "" }).collect();
    let row = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
        let cells: String = cells
            .zip(&classes)
            .map(|(cell, class)| format!("<{tag}{class}>{}</{tag}>", escape(cell)))
            .collect();
        format!("<tr>{cells}</tr>\n")
    };
    let body: String = rows.iter().map(|cells| row("td", &mut cells.iter().map(String::as_str))).collect();
    let open = if rows.len() > SHORT { "" } else { " open=\"open\"" };
    format!(
        "<details{open}>\n<summary>{}</summary>\n<div class=\"wide\"><table>\n<thead>{}</thead>\n\
         <tbody>\n{body}</tbody>\n</table></div>\n</details>\n",
        escape(name),
        row("th", &mut heads.iter().copied()),
    )
}
