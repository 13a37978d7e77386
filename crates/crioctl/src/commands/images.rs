//! Verbs about images.

use std::pin::pin;

use cri_api::v1::{
    AuthConfig, Image, ImageFilter, ImageSpec, ImageStatusRequest, ListImagesRequest, PullImageRequest,
    RemoveImageRequest,
};

use super::Session;
use crate::arguments::{ImageListArguments, Output, PullArguments};
use crate::client::Client;
use crate::error::CommandError;
use crate::message_json::{to_json, to_json_with_info};
use crate::progress::Progress;
use crate::table::{TextTable, bytes, short_id, text};

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..Default::default() }
}

pub(super) async fn list(session: &Session, arguments: &ImageListArguments) -> Result<(), CommandError> {
    let filter = arguments.image.as_deref().map(|image| ImageFilter { image: Some(spec(image)) });
    let mut answer = session.client.list_images(ListImagesRequest { filter }).await?;
    answer.images.sort_by(|a, b| (&a.repo_tags, &a.id).cmp(&(&b.repo_tags, &b.id)));
    if arguments.quiet {
        return session.print(&answer.images.iter().map(|image| format!("{}\n", image.id)).collect::<String>());
    }
    if session.output == Output::Json {
        return session.print_json(&to_json(&answer));
    }
    let mut table = TextTable::new(&["IMAGE", "TAG", "IMAGE ID", "SIZE"]);
    for image in &answer.images {
        for (name, tag) in names(image) {
            table.add(vec![text(&name), text(&tag), text(short_id(&image.id)), text(&bytes(image.size))]);
        }
    }
    session.print(&table.render())
}

/// Name and tag of each name of an image; one that has only digests is shown by its repository.
fn names(image: &Image) -> Vec<(String, String)> {
    const NONE: &str = "<none>";
    if image.repo_tags.is_empty() {
        let name = image.repo_digests.first().and_then(|digest| digest.split('@').next()).unwrap_or(NONE);
        return vec![(name.to_owned(), NONE.to_owned())];
    }
    let split = |name: &String| match name.rsplit_once(':') {
        // A colon before a slash is a registry's port.
        Some((name, tag)) if !tag.contains('/') => (name.to_owned(), tag.to_owned()),
        _ => (name.clone(), NONE.to_owned()),
    };
    image.repo_tags.iter().map(split).collect()
}

pub(super) async fn pull(session: &Session, arguments: &PullArguments) -> Result<(), CommandError> {
    let auth = arguments
        .creds
        .as_deref()
        .map(|creds| {
            let (username, password) = creds.split_once(':').ok_or(CommandError::Credentials)?;
            Ok::<_, CommandError>(AuthConfig {
                username: username.to_owned(),
                password: password.to_owned(),
                ..Default::default()
            })
        })
        .transpose()?;
    let reference = pull_with_progress(&session.client, &arguments.image, auth).await?;
    session.print_id(&reference)
}

/// Pulls an image and returns what the engine calls it.
pub(crate) async fn pull_with_progress(
    client: &Client,
    image: &str,
    auth: Option<AuthConfig>,
) -> Result<String, CommandError> {
    let mut progress = Progress::begin(format!("pulling {image}"));
    let order = PullImageRequest { image: Some(spec(image)), auth, sandbox_config: None };
    let mut pull = pin!(client.pull_image(order));
    let answer = tokio::select! {
        answer = &mut pull => answer,
        () = progress.follow_pull(client, image) => pull.await,
    };
    drop(progress);
    Ok(answer?.image_ref)
}

/// Whether the engine has an image.
pub(crate) async fn is_present(client: &Client, image: &str) -> Result<bool, CommandError> {
    let question = ImageStatusRequest { image: Some(spec(image)), verbose: false };
    Ok(client.image_status(question).await?.image.is_some())
}

pub(super) async fn remove(session: &Session, wanted: &[String]) -> Result<(), CommandError> {
    session
        .each(wanted, async |one| {
            // Removing what is absent succeeds by the CRI's rules, which would hide a mistyped name.
            if !is_present(&session.client, one).await? {
                return Err(CommandError::NoImage { image: one.to_owned() });
            }
            session.client.remove_image(RemoveImageRequest { image: Some(spec(one)) }).await?;
            Ok(())
        })
        .await
}

pub(super) async fn status(session: &Session, wanted: &str) -> Result<(), CommandError> {
    let question = ImageStatusRequest { image: Some(spec(wanted)), verbose: session.output == Output::Json };
    let answer = session.client.image_status(question).await?;
    let Some(image) = &answer.image else { return Err(CommandError::NoImage { image: wanted.to_owned() }) };
    if session.output == Output::Json {
        return session.print_json(&to_json_with_info(&answer));
    }
    let user = image.uid.as_ref().map_or_else(|| image.username.clone(), |uid| uid.value.to_string());
    session.print(
        &TextTable::of_pairs(&[
            ("id", image.id.clone()),
            ("tags", image.repo_tags.join(" ")),
            ("digests", image.repo_digests.join(" ")),
            ("size", bytes(image.size)),
            ("user", user),
            ("pinned", if image.pinned { "yes".to_owned() } else { String::new() }),
        ])
        .render(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_tags() {
        let strings = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
        type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [(&'a str, &'a str)]);
        let cases: [Case<'_>; 4] = [
            (&["r:5000/a/b:1", "c:2"], &[], &[("r:5000/a/b", "1"), ("c", "2")]),
            (&["r:5000/a"], &[], &[("r:5000/a", "<none>")]),
            (&[], &["r/a@sha256:00"], &[("r/a", "<none>")]),
            (&[], &[], &[("<none>", "<none>")]),
        ];
        for (tags, digests, expected) in cases {
            let image = Image { repo_tags: strings(tags), repo_digests: strings(digests), ..Default::default() };
            let got = names(&image);
            let got: Vec<(&str, &str)> = got.iter().map(|(name, tag)| (name.as_str(), tag.as_str())).collect();
            assert_eq!(got, expected);
        }
    }
}
