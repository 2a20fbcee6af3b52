//! TurboJPEG, the API of libjpeg-turbo: what PIL, and so every PyTorch pipeline, decodes JPEGs with.
//!
//! It is opened at run time, where it is installed. Decoders differ in the last bits of chroma, so
//! only this one gives the pixels that PIL gives.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_uchar, c_ulong, c_void};
use std::sync::OnceLock;

use libloading::os::unix::Library;

use super::library::{self, Missing, Wanted};

const LIBTURBOJPEG: Wanted = Wanted {
    names: &["libturbojpeg.so.0"],
    folders: &[],
    remedy: "install libjpeg-turbo (Debian: apt-get install libturbojpeg0)",
};

/// `TJPF_RGB`: three bytes a pixel.
const RGB: c_int = 0;
/// `TJCS_CMYK` and all above it: colours that are no RGB, YCbCr or grey.
const CMYK: c_int = 3;
/// `TJERR_WARNING`: the image was decoded, with something odd about it.
const WARNING: c_int = 0;

type Handle = *mut c_void;

/// The functions of `turbojpeg.h` that are used.
struct Api {
    init_decompress: unsafe extern "C" fn() -> Handle,
    decompress_header: unsafe extern "C" fn(
        Handle,
        *const c_uchar,
        c_ulong,
        *mut c_int,
        *mut c_int,
        *mut c_int,
        *mut c_int,
    ) -> c_int,
    decompress: unsafe extern "C" fn(
        Handle,
        *const c_uchar,
        c_ulong,
        *mut c_uchar,
        c_int,
        c_int,
        c_int,
        c_int,
        c_int,
    ) -> c_int,
    error_code: unsafe extern "C" fn(Handle) -> c_int,
    error_text: unsafe extern "C" fn(Handle) -> *mut c_char,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
}

impl Api {
    /// Opens the library and looks the functions up, once.
    fn get() -> Result<&'static Self, Missing> {
        static LOADED: OnceLock<Result<Api, Missing>> = OnceLock::new();
        LOADED.get_or_init(Self::open).as_ref().map_err(Clone::clone)
    }

    fn open() -> Result<Self, Missing> {
        let library = library::open(&LIBTURBOJPEG)?;
        /// Looks a function up and gives it the type its field has.
        macro_rules! function {
            ($name:literal) => {{
                // SAFETY: the field's type is the function's declaration in turbojpeg.h, which has
                // not changed under this name since version 1.4.
                *unsafe { library.get($name) }.map_err(|error| Missing {
                    library: "libturbojpeg.so.0",
                    reason: library::reason(&error),
                    remedy: LIBTURBOJPEG.remedy,
                })?
            }};
        }
        let api = Self {
            init_decompress: function!("tjInitDecompress"),
            decompress_header: function!("tjDecompressHeader3"),
            decompress: function!("tjDecompress2"),
            error_code: function!("tjGetErrorCode"),
            error_text: function!("tjGetErrorStr2"),
            destroy: function!("tjDestroy"),
        };
        // The functions stay callable: the library is never closed.
        std::mem::forget::<Library>(library);
        Ok(api)
    }
}

/// Returns why there is no libjpeg-turbo here, if there is none.
pub fn missing() -> Option<Missing> {
    Api::get().err()
}

/// What a JPEG's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Whether its colours can be decoded to RGB.
    pub rgb: bool,
}

/// Reads the header of a JPEG; none where the library is missing.
pub fn header(bytes: &[u8]) -> Option<Result<Header, String>> {
    with_decoder(|decoder| decoder.header(bytes))
}

/// Decodes a JPEG of `header` into interleaved RGB; none where the library is missing.
pub fn decode(bytes: &[u8], header: Header) -> Option<Result<Vec<u8>, String>> {
    with_decoder(|decoder| decoder.decode(bytes, header))
}

/// Runs `work` with this thread's decoder.
fn with_decoder<T>(work: impl FnOnce(&Decoder) -> Result<T, String>) -> Option<Result<T, String>> {
    thread_local! {
        static DECODER: RefCell<Option<Decoder>> = const { RefCell::new(None) };
    }
    let api = Api::get().ok()?;
    Some(DECODER.with_borrow_mut(|decoder| {
        if decoder.is_none() {
            *decoder = Some(Decoder::new(api)?);
        }
        match decoder {
            Some(decoder) => work(decoder),
            None => Err("libjpeg-turbo gives no decoder".to_owned()),
        }
    }))
}

/// A decoder, which one thread at a time may use.
struct Decoder {
    api: &'static Api,
    handle: Handle,
}

impl Decoder {
    fn new(api: &'static Api) -> Result<Self, String> {
        // SAFETY: takes nothing and returns a handle or null.
        let handle = unsafe { (api.init_decompress)() };
        match handle.is_null() {
            true => Err("libjpeg-turbo gives no decoder".to_owned()),
            false => Ok(Self { api, handle }),
        }
    }

    fn header(&self, bytes: &[u8]) -> Result<Header, String> {
        let (mut width, mut height, mut subsampling, mut colours) = (0, 0, 0, -1);
        // SAFETY: the handle is this decoder's; `bytes` is readable for its length, which is passed,
        // and the four numbers are written before the call returns.
        let code = unsafe {
            (self.api.decompress_header)(
                self.handle,
                bytes.as_ptr(),
                bytes.len() as c_ulong,
                &raw mut width,
                &raw mut height,
                &raw mut subsampling,
                &raw mut colours,
            )
        };
        // It fails for samplings that it has no name for, and decodes them all the same.
        if colours < 0 {
            self.check(code)?;
        }
        match (u32::try_from(width), u32::try_from(height)) {
            (Ok(width @ 1..), Ok(height @ 1..)) => {
                Ok(Header { width, height, rgb: colours < CMYK })
            }
            _ => Err(format!("its header says {width} x {height} pixels")),
        }
    }

    fn decode(&self, bytes: &[u8], header: Header) -> Result<Vec<u8>, String> {
        let Header { width, height, .. } = header;
        let mut pixels = vec![0; width as usize * height as usize * 3];
        // SAFETY: the handle is this decoder's; `bytes` is readable for its length. `pixels` holds
        // height rows of width pixels of three bytes, what the function writes for this width,
        // height and format; a JPEG of another size is refused by it.
        let code = unsafe {
            (self.api.decompress)(
                self.handle,
                bytes.as_ptr(),
                bytes.len() as c_ulong,
                pixels.as_mut_ptr(),
                width as c_int,
                0,
                height as c_int,
                RGB,
                0,
            )
        };
        self.check(code)?;
        Ok(pixels)
    }

    /// Turns a return code into an error; a warning is none, as for PIL.
    fn check(&self, code: c_int) -> Result<(), String> {
        // SAFETY: the handle is this decoder's.
        if code == 0 || unsafe { (self.api.error_code)(self.handle) } == WARNING {
            return Ok(());
        }
        // SAFETY: the handle is this decoder's, whose last call failed: the text is a C string that
        // stays until the next call on it.
        let text = unsafe { CStr::from_ptr((self.api.error_text)(self.handle)) };
        Err(text.to_string_lossy().into_owned())
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: the handle is this decoder's and is not used again.
        unsafe { (self.api.destroy)(self.handle) };
    }
}
