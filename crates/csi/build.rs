//! Generates the Rust of both protocols, without protoc. Messages that carry secrets get a `Debug` of our own, which
//! shows everything except them: the fields are recognised by the protocol's own mark, the option `csi_secret`. Of a
//! `volume_context` beside them only the names are shown, as orchestrators put service-account tokens there.

use protox::prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor, Value};
use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

const SOURCES: [&str; 2] = ["csi.proto", "pluginregistration.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(SOURCES)?;
    let secretive = secretive_messages(&compiler.descriptor_pool());

    tonic_prost_build::configure()
        .btree_map(".")
        .generate_default_stubs(true)
        .skip_debug(secretive.iter().map(|(message, _)| format!(".{}", message.full_name())))
        .emit_rerun_if_changed(false)
        .compile_fds(compiler.file_descriptor_set())?;
    fs::write(Path::new(&env::var("OUT_DIR")?).join("debug.rs"), debug_impls(&secretive))?;
    Ok(())
}

/// Messages with at least one field marked `csi_secret`, and the names of those fields.
fn secretive_messages(pool: &DescriptorPool) -> Vec<(MessageDescriptor, Vec<String>)> {
    let Some(mark) = pool.get_extension_by_name("csi.v1.csi_secret") else {
        return Vec::new();
    };
    let is_secret = |field: &FieldDescriptor| *field.options().get_extension(&mark) == Value::Bool(true);
    pool.all_messages()
        .map(|message| {
            let names = message.fields().filter(is_secret).map(|field| field.name().to_owned()).collect();
            (message, names)
        })
        .filter(|(_, names): &(_, Vec<String>)| !names.is_empty())
        .collect()
}

fn debug_impls(secretive: &[(MessageDescriptor, Vec<String>)]) -> String {
    let mut code = String::new();
    for (message, secrets) in secretive {
        let name = message.name();
        let fields = message.fields().fold(String::new(), |mut lines, field| {
            let field = field.name().to_owned();
            let value = match field.as_str() {
                name if secrets.contains(&field) => format!("&crate::secret::Redacted(self.{name}.len())"),
                "volume_context" => "&crate::secret::Names(&self.volume_context)".to_owned(),
                name => format!("&self.{name}"),
            };
            let _ = writeln!(lines, "            .field(\"{field}\", {value})");
            lines
        });
        let _ = writeln!(
            code,
            "impl ::core::fmt::Debug for {name} {{\n    \
                 fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{\n        \
                     f.debug_struct(\"{name}\")\n{fields}            .finish()\n    \
                 }}\n}}"
        );
    }
    code
}
