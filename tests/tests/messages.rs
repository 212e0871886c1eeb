//! What was once said on the wire stays as it was: programs of other versions, and logs on disks, still say it.
//!
//! `proto/released.txt` lists every field, value and call of the last release. Each must be there, under its number, name
//! and type. New ones are free until they are released; then `PROFFER_BLESS=1 cargo test -p proffer-tests --test main
//! messages` adds them to the list. Nothing ever leaves it.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

use super::python::repository;

const RELEASED: &str = "proto/released.txt";

/// One line for each field, value and call.
fn lines(set: &FileDescriptorSet) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for file in set.file.iter().filter(|file| file.package().starts_with("proffer.")) {
        let package = file.package();
        file.message_type.iter().for_each(|message| add_message(package, message, &mut lines));
        file.enum_type.iter().for_each(|values| add_enum(package, values, &mut lines));
        for service in &file.service {
            for method in &service.method {
                let stream = |streaming: bool| if streaming { "stream " } else { "" };
                lines.insert(format!(
                    "{package}.{}.{}({}{}) {}{}",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    plain(method.input_type()),
                    stream(method.server_streaming()),
                    plain(method.output_type()),
                ));
            }
        }
    }
    lines
}

fn add_message(above: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let name = format!("{above}.{}", message.name());
    for field in &message.field {
        lines.insert(format!("{name}.{} = {} {}", field.name(), field.number(), kind(message, field)));
    }
    message.nested_type.iter().for_each(|nested| add_message(&name, nested, lines));
    message.enum_type.iter().for_each(|values| add_enum(&name, values, lines));
}

fn add_enum(above: &str, values: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    for value in &values.value {
        lines.insert(format!("{above}.{}.{} = {}", values.name(), value.name(), value.number()));
    }
}

fn kind(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let base = match field.r#type() {
        Type::Message | Type::Enum => plain(field.type_name()).to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let one_of = field.oneof_index.filter(|_| !field.proto3_optional());
    let one_of = one_of.and_then(|index| message.oneof_decl.get(index as usize));
    match (field.label(), one_of) {
        (Label::Repeated, _) => format!("repeated {base}"),
        (_, Some(one_of)) => format!("{base} of {}", one_of.name()),
        _ if field.proto3_optional() => format!("optional {base}"),
        _ => base,
    }
}

fn plain(name: &str) -> &str {
    name.trim_start_matches('.')
}

#[test]
fn messages_that_were_released_stay_as_they_were() {
    let set = FileDescriptorSet::decode(proffer_wire::DESCRIPTORS).expect("descriptors");
    let now = lines(&set);
    let path = repository(RELEASED);
    let released = std::fs::read_to_string(&path).expect("what was released");
    let released: BTreeSet<String> = released.lines().map(str::to_owned).collect();
    let missing: Vec<&String> = released.difference(&now).collect();
    assert!(missing.is_empty(), "released, and changed or gone: {missing:#?}");
    if std::env::var_os("PROFFER_BLESS").is_some() {
        let text: String = now.iter().map(|line| format!("{line}\n")).collect();
        return std::fs::write(path, text).expect("written");
    }
    assert!(released.len() > 100, "only {} lines", released.len());
}
