//! What HTML pages have in common: they need no other file and no network.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use ringmaster_inputs::image::RgbImage;

use crate::picture;

/// A sample to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// `shard/key`.
    pub key: String,
    /// Its captions.
    pub captions: Vec<String>,
    /// Columns and rows of its image.
    pub size: Option<(u32, u32)>,
    /// The image made small, or why there is none.
    pub picture: Result<RgbImage, String>,
}

impl Shown {
    /// Returns its first caption.
    pub fn caption(&self) -> &str {
        self.captions.first().map_or("", String::as_str)
    }
}

const STYLE: &str = include_str!("page.css");
/// Quality of the JPEGs of small pictures.
const QUALITY: u8 = 88;
/// Characters of a caption that are shown.
const CAPTION: usize = 200;

/// Returns a page with this title and content.
pub(crate) fn page(title: &str, content: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{content}</main>\n</body>\n</html>\n"
    )
}

/// Returns text as it stands in HTML.
pub(crate) fn escape(text: &str) -> String {
    html_escape::encode_quoted_attribute(text).into_owned()
}

/// Appends samples side by side.
pub(crate) fn sheet(page: &mut String, samples: &[Shown]) {
    page.push_str("<div class=\"sheet\">\n");
    samples.iter().for_each(|sample| card(page, sample));
    page.push_str("</div>\n");
}

/// Appends a sample: picture, caption, key and size.
pub(crate) fn card(page: &mut String, sample: &Shown) {
    let caption = sample.caption();
    page.push_str("<figure class=\"card\"><div class=\"frame\">");
    match picture(sample) {
        Ok(encoded) => {
            let alt = escape(&shortened(caption, CAPTION));
            let _ = write!(page, "<img alt=\"{alt}\" src=\"data:image/jpeg;base64,{encoded}\">");
        }
        Err(reason) => {
            let _ = write!(page, "<div class=\"none\">{}</div>", escape(&reason));
        }
    }
    let (key, size) = (escape(&sample.key), size(sample));
    let text = escape(&shortened(caption, CAPTION));
    let more = match sample.captions.len() {
        0 | 1 => String::new(),
        several => format!(" · {several} captions"),
    };
    let _ = writeln!(
        page,
        "</div><figcaption>{text}<small>{key}<br>{size}{more}</small></figcaption></figure>"
    );
}

fn picture(sample: &Shown) -> Result<String, String> {
    let image = sample.picture.as_ref().map_err(Clone::clone)?;
    let encoded = picture::jpeg(image, QUALITY).map_err(|error| error.to_string())?;
    Ok(BASE64.encode(encoded))
}

fn size(sample: &Shown) -> String {
    match sample.size {
        Some((width, height)) => format!("{width} × {height}"),
        None => String::new(),
    }
}

/// Returns text of at most `most` characters, with an ellipsis where some were left out.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let start: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{}…", start.trim_end())
}
