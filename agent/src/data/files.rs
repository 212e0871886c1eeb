//! Files of a sandbox on their way to or from an operator.

use std::path::PathBuf;

use proffer_types::limits::PAGE_ROWS_MAX;
use proffer_wire::admin::v1 as admin;
use proffer_wire::admin::v1::FileItem;
use proffer_wire::admin::v1::file_item::Item;
use proffer_wire::agent::v1::DataRequest;
use proffer_wire::agent::v1::data_chunk::Answer;
use proffer_wire::agent::v1::data_request::Ask;
use proffer_wire::{Malformed, from_proto};
use prost::Message;
use tonic::Streaming;

use super::sandbox::{Sandbox, Writing};
use super::{CHUNK_BYTES, Gone, Outbound, Refusal, blocking, next_ask};

impl From<Malformed> for Refusal {
    fn from(error: Malformed) -> Self {
        Self::new("INVALID", error.to_string())
    }
}

/// A page of a directory.
pub(super) async fn list(
    sandbox: Option<PathBuf>,
    request: admin::ListFilesRequest,
    outbound: &Outbound,
) -> Result<(), Gone> {
    let listed = blocking(move || -> Result<_, Refusal> {
        let path = from_proto::sandbox_path(&request.path, "path")?;
        let most = match request.size as usize {
            0 => PAGE_ROWS_MAX,
            size => size.min(PAGE_ROWS_MAX),
        };
        Ok(Sandbox::open(sandbox.as_deref())?.list(&path, most, &request.token)?)
    });
    match listed.await {
        Ok((entries, next, directory)) => {
            let list = admin::ListFilesResponse { entries, next: next.into(), directory };
            outbound.answer(Answer::ListFiles(list), true).await
        }
        Err(refusal) => outbound.refuse(refusal).await,
    }
}

/// Files with what is in them.
pub(super) async fn read(
    sandbox: Option<PathBuf>,
    request: admin::ReadFilesRequest,
    outbound: &Outbound,
) -> Result<(), Gone> {
    let to_operator = outbound.clone();
    let read = blocking(move || -> Result<(), Refusal> {
        let path = from_proto::sandbox_path(&request.path, "path")?;
        let sandbox = Sandbox::open(sandbox.as_deref())?;
        let mut pack = Pack { items: Vec::new(), bytes: 0, outbound: to_operator };
        sandbox.read(&path, &mut |item| pack.push(item))?;
        Ok(())
    });
    match read.await {
        Ok(()) => Ok(()),
        Err(refusal) => outbound.refuse(refusal).await,
    }
}

/// Gathers small things, so that a thousand small files are not two thousand messages.
struct Pack {
    items: Vec<FileItem>,
    bytes: usize,
    outbound: Outbound,
}

impl Pack {
    /// `false` if nobody listens any more.
    fn push(&mut self, item: Item) -> bool {
        let end = matches!(item, Item::End(_));
        let item = FileItem { item: Some(item) };
        self.bytes += item.encoded_len();
        self.items.push(item);
        if self.bytes < CHUNK_BYTES && !end {
            return true;
        }
        self.bytes = 0;
        let answer = admin::ReadFilesResponse { items: std::mem::take(&mut self.items) };
        self.outbound.answer_blocking(Answer::ReadFiles(answer), end).is_ok()
    }
}

/// Puts files into a sandbox.
pub(super) async fn write(
    sandbox: Option<PathBuf>,
    first: admin::WriteFilesRequest,
    outbound: &Outbound,
    requests: &mut Streaming<DataRequest>,
) -> Result<(), Gone> {
    let Some(start) = first.start else {
        return outbound.refuse(Refusal::new("INVALID", "start: must be given")).await;
    };
    let begun = blocking(move || -> Result<Writing, Refusal> {
        let path = from_proto::sandbox_path(&start.path, "start.path")?;
        let name = from_proto::file_name(&start.name, "start.name")?;
        Ok(Writing::begin(Sandbox::open(sandbox.as_deref())?, &path, &name)?)
    });
    let mut writing = match begun.await {
        Ok(writing) => writing,
        Err(refusal) => return outbound.refuse(refusal).await,
    };
    let mut items = first.items;
    loop {
        let taken = blocking(move || -> Result<Writing, Refusal> {
            items.into_iter().try_for_each(|item| writing.take(item))?;
            Ok(writing)
        });
        writing = match taken.await {
            Ok(writing) => writing,
            Err(refusal) => return outbound.refuse(refusal).await,
        };
        if let Some(sum) = writing.sum() {
            let done = admin::WriteFilesResponse { files: sum.files, bytes: sum.bytes };
            return outbound.answer(Answer::WriteFiles(done), true).await;
        }
        // Without an end the operator is gone in the middle: what is not whole is not there.
        match next_ask(requests).await {
            Some(Ask::WriteFiles(more)) => items = more.items,
            Some(_) => {
                return outbound.refuse(Refusal::new("INVALID", "something else than files came")).await;
            }
            None => return Err(Gone),
        }
    }
}
