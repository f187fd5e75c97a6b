//! Derive macros for plugin options. Documented where they are used: in `espalier-sdk`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Error, Expr, Field, Fields, Lit, Meta, Result, Type};

/// Options of a struct: `#[option(default = VALUE, min = NUMBER, max = NUMBER, live)]` on each field.
#[proc_macro_derive(Options, attributes(option))]
pub fn options(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    derive_options(&input)
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}

/// A choice of an enum without fields.
#[proc_macro_derive(Choice)]
pub fn choice(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    derive_choice(&input)
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}

fn derive_options(input: &DeriveInput) -> Result<TokenStream> {
    let name = &input.ident;
    let fields = match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) => fields
                .named
                .iter()
                .map(OptionField::parse)
                .collect::<Result<Vec<_>>>()?,
            other => return Err(Error::new(other.span(), "options need named fields")),
        },
        _ => {
            return Err(Error::new(
                name.span(),
                "`Options` is for structs; an enum derives `Choice`",
            ));
        }
    };
    let infos = fields.iter().map(|field| {
        let OptionField {
            ty,
            name,
            doc,
            live,
            ..
        } = field;
        let (default, min, max) = (field.default(), number(&field.min), number(&field.max));
        quote! {
            ::espalier_sdk::options::OptionInfo {
                name: ::std::string::String::from(#name),
                kind: <#ty as ::espalier_sdk::options::OptionType>::kind(),
                default: <#ty as ::espalier_sdk::options::OptionType>::to_value(&#default),
                min: #min.or(<#ty as ::espalier_sdk::options::OptionType>::least()),
                max: #max,
                doc: ::std::string::String::from(#doc),
                live: #live,
            }
        }
    });
    let reads = fields.iter().map(|field| {
        let OptionField { ident, ty, name, .. } = field;
        let (default, min, max) = (field.default(), number(&field.min), number(&field.max));
        quote! { #ident: ::espalier_sdk::options::read::<#ty>(settings, #name, #default, (#min.or(<#ty as ::espalier_sdk::options::OptionType>::least()), #max))? }
    });
    let live: Vec<_> = fields.iter().filter(|field| field.live).collect();
    let live_values = live.iter().map(|OptionField { ident, ty, name, .. }| {
        quote! {
            (::std::string::String::from(#name), <#ty as ::espalier_sdk::options::OptionType>::to_value(&self.#ident))
        }
    });
    let live_cases = live.iter().map(|field| {
        let OptionField { ident, ty, name, .. } = field;
        let (min, max) = (number(&field.min), number(&field.max));
        quote! {
            #name => {
                let setting = [(::std::string::String::from(#name), ::core::clone::Clone::clone(value))];
                let range = (#min.or(<#ty as ::espalier_sdk::options::OptionType>::least()), #max);
                let default = ::core::clone::Clone::clone(&self.#ident);
                self.#ident = ::espalier_sdk::options::read::<#ty>(&setting, #name, default, range)?;
                ::core::result::Result::Ok(())
            }
        }
    });
    let (generics, args, bounds) = input.generics.split_for_impl();
    Ok(quote! {
        impl #generics ::espalier_sdk::options::Options for #name #args #bounds {
            fn infos() -> ::std::vec::Vec<::espalier_sdk::options::OptionInfo> {
                ::std::vec![#(#infos),*]
            }

            fn from_settings(
                settings: &[::espalier_sdk::options::Setting],
            ) -> ::core::result::Result<Self, ::espalier_sdk::run::Error> {
                ::espalier_sdk::options::check_names::<Self>(settings)?;
                ::core::result::Result::Ok(#name { #(#reads),* })
            }

            fn live(&self) -> ::std::vec::Vec<::espalier_sdk::options::Setting> {
                ::std::vec![#(#live_values),*]
            }

            fn set_live(
                &mut self,
                name: &str,
                value: &::espalier_sdk::options::Value,
            ) -> ::core::result::Result<(), ::espalier_sdk::run::Error> {
                let _ = value;
                match name {
                    #(#live_cases)*
                    _ => ::core::result::Result::Err(::espalier_sdk::options::not_live(name)),
                }
            }
        }
    })
}

struct OptionField {
    ident: syn::Ident,
    ty: Type,
    name: String,
    doc: String,
    default: Expr,
    min: Option<Expr>,
    max: Option<Expr>,
    live: bool,
}

impl OptionField {
    fn parse(field: &Field) -> Result<OptionField> {
        let Some(ident) = field.ident.clone() else {
            return Err(Error::new(field.span(), "options need named fields"));
        };
        let (mut default, mut min, mut max, mut live) = (None, None, None, false);
        for attribute in field
            .attrs
            .iter()
            .filter(|attribute| attribute.path().is_ident("option"))
        {
            attribute.parse_nested_meta(|meta| {
                if meta.path.is_ident("default") {
                    default = Some(meta.value()?.parse()?);
                } else if meta.path.is_ident("min") {
                    min = Some(meta.value()?.parse()?);
                } else if meta.path.is_ident("max") {
                    max = Some(meta.value()?.parse()?);
                } else if meta.path.is_ident("live") {
                    live = true;
                } else {
                    return Err(
                        meta.error("expected `default = ..`, `min = ..`, `max = ..` or `live`")
                    );
                }
                Ok(())
            })?;
        }
        let doc = doc(&field.attrs);
        if doc.is_empty() {
            return Err(Error::new(
                ident.span(),
                "an option needs a doc comment: it is what a user reads",
            ));
        }
        let Some(default) = default else {
            return Err(Error::new(
                ident.span(),
                "an option needs a default: `#[option(default = ..)]`",
            ));
        };
        let name = kebab(&ident.to_string());
        Ok(OptionField {
            ident,
            ty: field.ty.clone(),
            name,
            doc,
            default,
            min,
            max,
            live,
        })
    }

    /// The default as an expression of the field's type: `1` serves for a number, `"a"` for a `String`.
    fn default(&self) -> TokenStream {
        let (default, ty) = (&self.default, &self.ty);
        match quote!(#ty).to_string().as_str() {
            "f64" => quote!(((#default) as f64)),
            "String" => quote!(::std::string::String::from(#default)),
            "Vec < f64 >" => quote!(::std::vec::Vec::<f64>::from(#default)),
            _ => quote!(#default),
        }
    }
}

fn number(expr: &Option<Expr>) -> TokenStream {
    match expr {
        Some(expr) => quote!(::core::option::Option::Some((#expr) as f64)),
        None => quote!(::core::option::Option::<f64>::None),
    }
}

/// The lines of a doc comment, joined.
fn doc(attributes: &[Attribute]) -> String {
    let mut lines = Vec::new();
    for attribute in attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("doc"))
    {
        if let Meta::NameValue(pair) = &attribute.meta
            && let Expr::Lit(literal) = &pair.value
            && let Lit::Str(text) = &literal.lit
        {
            lines.push(text.value().trim().to_string());
        }
    }
    lines.join(" ").trim().to_string()
}

fn derive_choice(input: &DeriveInput) -> Result<TokenStream> {
    let name = &input.ident;
    let Data::Enum(data) = &input.data else {
        return Err(Error::new(name.span(), "`Choice` is for enums"));
    };
    if let Some(variant) = data
        .variants
        .iter()
        .find(|variant| !matches!(variant.fields, Fields::Unit))
    {
        return Err(Error::new(variant.span(), "a choice has no fields"));
    }
    let cases: Vec<_> = data.variants.iter().map(|variant| &variant.ident).collect();
    let names: Vec<_> = cases.iter().map(|case| kebab(&case.to_string())).collect();
    Ok(quote! {
        impl ::espalier_sdk::options::Choice for #name {
            const NAMES: &'static [&'static str] = &[#(#names),*];

            fn from_name(name: &str) -> ::core::option::Option<Self> {
                match name {
                    #(#names => ::core::option::Option::Some(Self::#cases),)*
                    _ => ::core::option::Option::None,
                }
            }

            fn name(&self) -> &'static str {
                match self {
                    #(Self::#cases => #names,)*
                }
            }
        }

        impl ::espalier_sdk::options::OptionType for #name {
            fn kind() -> ::espalier_sdk::options::Kind {
                ::espalier_sdk::options::Kind::Choice(::std::vec![#(::std::string::String::from(#names)),*])
            }

            fn to_value(&self) -> ::espalier_sdk::options::Value {
                ::espalier_sdk::options::Value::Text(::std::string::String::from(
                    ::espalier_sdk::options::Choice::name(self),
                ))
            }

            fn from_value(value: &::espalier_sdk::options::Value) -> ::core::option::Option<Self> {
                match value {
                    ::espalier_sdk::options::Value::Text(name) => ::espalier_sdk::options::Choice::from_name(name),
                    _ => ::core::option::Option::None,
                }
            }
        }
    })
}

/// `every_steps` and `OneShot` as `every-steps` and `one-shot`.
fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for (i, c) in name.trim_start_matches("r#").chars().enumerate() {
        match c {
            '_' => kebab.push('-'),
            c if c.is_uppercase() => {
                if i > 0 {
                    kebab.push('-');
                }
                kebab.extend(c.to_lowercase());
            }
            c => kebab.push(c),
        }
    }
    kebab
}

#[cfg(test)]
mod tests {
    use super::kebab;

    #[test]
    fn names_become_kebab_case() {
        assert_eq!(kebab("every_steps"), "every-steps");
        assert_eq!(kebab("OneShot"), "one-shot");
        assert_eq!(kebab("sgd"), "sgd");
        assert_eq!(kebab("r#type"), "type");
    }
}
